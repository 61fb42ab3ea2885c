-- The number of the version that a file restored, and why.
ALTER TABLE tech_files ADD COLUMN restored_from integer, ADD COLUMN restore_reason text NOT NULL DEFAULT '';
-- The SHA-256 of the snapshot's text, taken when it was written; '' in rows from before that.
ALTER TABLE tech_file_versions ADD COLUMN sha256 text NOT NULL DEFAULT '';
