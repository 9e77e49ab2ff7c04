import warnings

with warnings.catch_warnings():
    # typer, which flwr imports, imports names that newer releases of click warn about.
    warnings.filterwarnings("ignore", r"'click\.utils\.", DeprecationWarning)
    import flwr.app  # noqa: F401
