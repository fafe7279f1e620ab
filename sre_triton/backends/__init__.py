"""How a ring convolution is computed: every backend gives the function of the dense one."""
