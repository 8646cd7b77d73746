"""Ray clusters from one description: the files of Ray's cluster launcher, their checks, and the commands that run them.

A ``Description`` renders to a launcher file for each place (``ray_yaml``); ``check`` finds in any such file what Ray and the cloud
would refuse or, worse, ignore; ``machines`` brings a file's cluster up and down through Ray's own commands.
"""
