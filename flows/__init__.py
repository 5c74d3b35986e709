"""When and where stages run: the Prefect flows, the plan, the report and the command line."""
