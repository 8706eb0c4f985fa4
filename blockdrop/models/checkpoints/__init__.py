"""Every checkpoint dialect in, one dialect out. A file is data: reading it never runs code from it, and takes
memory in proportion to its size.

Files: `torch_files`, `tensor_pickle` and `safetensors_files` read bytes; `dialects` understands what they hold,
`published` fetches what others publish; `filling` builds and fills networks, `saving` writes; `operating_points`
checks one part of what is read and written.
"""
