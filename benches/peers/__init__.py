"""The serving workloads on other engines, each in an environment of its own, interleaved with Octavo.

environments  sets the peers up under .peers/ and says of each what failed
models        writes random weights for the shapes, and every form a peer wants them in
rounds        runs all of them, turn by turn, and leaves a record per workload and precision
served        the same for S1, over HTTP, of the engines that have a server
drivers       one script per engine, run by that engine's own Python
"""
