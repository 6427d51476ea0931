"""The CVMFS and HTTP cache: verified objects, one fetch for many waiters, a lean listener."""
