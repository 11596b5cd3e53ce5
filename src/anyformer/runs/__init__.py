"""What a run remembers: its directory and manifest, durable checkpoints, metrics, and the way back to a trained module.

directory    RunDirectory: the folder, run.json, settings.yaml, the model's source, samples
checkpoints  DirectoryCheckpointIO, verify_checkpoint, list_checkpoints, newest_good
background   BackgroundCheckpointIO: the thread that writes them while a run goes on
foreign      read_ckpt: other programs' checkpoint files, as data only
remote       RemoteFolder: a folder behind an fsspec URL; checkpoints put there and fetched, verified
backup       Backup: the thread that copies checkpoints while a run goes on
elsewhere    a whole run's copy, and the way back from it
find         find_run: what --resume auto means
leftovers    clear_up: what a killed process left of a save
metrics      CsvMetrics, Lightning's logger to metrics/metrics.csv
trackers     TensorBoard, W&B and MLflow behind one protocol, each in a process of its own
tracking     Trackers: rows handed to them; one that fails or hangs is left behind
rebuild      load_run: the trained module, its call plan and tokenizer from a run's folder
compare      whether two runs are the same: curves row by row, weights by hash
environment  versions and machine facts
"""
