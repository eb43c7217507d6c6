"""The whole system on this machine, under one supervisor: what `mloc up` starts."""
