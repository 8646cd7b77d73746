"""No pandas: a replica has this folder before all others on its path.

Ray Serve imports pandas where it is there, to write data frames as JSON, which no replica of ours has: 80 MB and half a second of each.
"""

raise ImportError("a replica has no pandas")
