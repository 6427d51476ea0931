"""netd: the small privileged part of egress. It owns ``table inet edged`` and nothing else."""
