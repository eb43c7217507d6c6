"""The fleet's engine inside one process, for tests of what talks to a fleet or works for one."""
