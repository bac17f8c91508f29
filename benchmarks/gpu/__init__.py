"""Check the project on one GPU in a single short call: `python -m benchmarks.gpu`.

It says what works there, what is wrong, and how fast it is.

    python -m benchmarks.gpu [--only PART,PART] [--budget SECONDS]
    python -m benchmarks.gpu --device cpu --tiny      # rehearsal without a GPU

Results are in $OUT, else in gpu_out/: summary.txt (read this), results.json, log.txt (what the
parts printed), profile.txt (the most expensive operations of a decoding step).

`prepare.sh` and `run.sh` beside this file carry the check to a machine without network.
"""
