"""The teacher cache: building it, reading it, several teachers as one."""
