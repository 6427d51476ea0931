"""What runs on compute nodes beside jobs; for the nodes' own Python."""
