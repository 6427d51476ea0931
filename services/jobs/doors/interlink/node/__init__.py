"""What runs a pod on a compute node: Python 3.6 and its standard library, nothing else.

These files travel inside each pod's ``pod.pyz`` and are imported from there; nothing of edged is on the node.
"""
