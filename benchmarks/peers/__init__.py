"""Other methods on this machine, in the same run as ours: `nnet-edge bench peers`.

anomalib lives in an environment of its own (environment.py). learn.py, anomalib_model.py and serve.py run there; the rest
runs here. Both sides meet in files (jobs, maps, facts) and, for speed, at a pipe: every candidate is a process that answers
"time so many frames", so all are measured in the same rounds although they cannot live in one process.
"""
