"""What ``edged doctor`` looks at that belongs to no single service."""
