"""The worker's side. To run a job is to fetch what goes in, let a provider work, and store what
comes out. Each kind of job has a module here."""
