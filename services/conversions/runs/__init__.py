"""The worker's side. A run fetches a job's inputs, lets a provider work, and stores the result.
Each kind of job has a module here."""
