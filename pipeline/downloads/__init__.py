"""Public data sets brought to a folder: their archives, fetched over HTTP, checked and unpacked."""
