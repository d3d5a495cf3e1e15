"""When does what run? One use-case call per job."""
