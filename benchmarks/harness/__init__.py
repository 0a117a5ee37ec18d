"""What run.py is made of: the cases, the processes, the measurements and what is computed from them."""
