from workflow_conftest import finished  # noqa: F401
