"""docs/published-numbers.md holds the built-in rows, each with the address of its source."""

from tests.docs.published import PAGE, page


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text("utf-8") == page(), "python -m tests.docs.published writes it anew"


def test_every_source_has_an_address() -> None:
    sources = page().partition("## Sources")[2].partition("## Detection")[0].splitlines()[4:]
    assert len(sources) > 5 and all("](https://" in line for line in sources if line)
