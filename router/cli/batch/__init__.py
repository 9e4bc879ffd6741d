"""`crossover classify --escalate batch`: `run` begins or goes on with a job, `job_file` holds what was done."""
