"""A key's description is the docstring below its field, read when a schema is asked for."""

from pydantic import BaseModel, ConfigDict, Field

from pipeline.config.json_schema import SCHEMAS, json_schema


class Base(BaseModel):
    """A section."""

    model_config = ConfigDict(extra="forbid")

    size: int = 3
    """pixels,
    of the longer side
    """
    "nobody's"
    given: int = Field(default=0, description="as it is given")
    """not this"""


class Inheriting(Base):
    """A section with a section."""

    plain: int
    part: Base = Base()
    """its part"""

    def method(self) -> None:
        """Not a field's."""


def test_fields_of_the_model_its_bases_and_its_parts_are_described() -> None:
    schema = json_schema(Inheriting)
    assert schema["description"] == "A section with a section."
    texts = {name: value.get("description") for name, value in schema["properties"].items()}
    size = "pixels,\nof the longer side"
    described = {"size": size, "given": "as it is given"}
    assert texts == described | {"plain": None, "part": "its part"}
    part = schema["$defs"]["Base"]["properties"]
    assert {name: value.get("description") for name, value in part.items()} == described


def test_no_start_of_a_command_reads_them() -> None:
    """They are not in the models, which every command imports."""
    for model in SCHEMAS.values():
        undescribed = [name for name, each in model.model_fields.items() if not each.description]
        properties = json_schema(model)["properties"]
        assert undescribed and all(properties[name]["description"] for name in undescribed)
