"""The order of the work: Prefect flows and the command line, over `registry` and `align`."""
