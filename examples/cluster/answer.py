"""Answer the rows of a data set on the cluster that this runs on; started again, it goes on where it was."""

from __future__ import annotations

import os

import ray

import layerstream.ray as lsr

BUCKET = os.environ["BUCKET"]  # such as s3://my-bucket/job; every node may read and write there
MODEL = os.environ.get("MODEL", "/mnt/nvme/model")  # each node's own copy
CORES = int(os.environ.get("CORES", "14"))  # of 16: the steps before and after need some

ray.init(address="auto")
rows = ray.data.read_parquet(f"{BUCKET}/rows")  # with the columns id and text
answered = lsr.generate(
    rows,
    model=MODEL,
    prompt="text",
    chat=True,
    max_new_tokens=256,
    budget="auto",
    concurrency=(1, 8),
    num_cpus=CORES,
    disk_share=1,  # said here, since the nodes that declare it may not have started yet
    id_column="id",
    progress_dir=f"{BUCKET}/progress",
)
answered.write_parquet(f"{BUCKET}/answers")
