"""The operations on tables whose tensors lie on several devices, done by parts, each by the backend of its device.

Index lists, per-entry arrays and gradients at entries are on the table's home device; what an operation needs of them
goes to the parts' devices and back by torch's copies, which order the streams on both sides. Arguments are checked by
the public functions that dispatch here.
"""
