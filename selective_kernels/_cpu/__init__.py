"""The operations on the compiled CPU kernels. Arguments are checked by the public functions that dispatch here."""
