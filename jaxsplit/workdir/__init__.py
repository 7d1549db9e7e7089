"""What lies in a workdir: files on a disk or in a bucket, its lock, the cache of programs."""
