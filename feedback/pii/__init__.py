"""Personal data and secrets out of a record's texts before anything is stored.

Reading order: `rules` (what a rule is), the tables `secrets`, `keyvalues`, `ids`, `cues`,
`contact`, `person`, the walkers `addresses` and `names`, then `normalise`, `scan`, `redact`,
`record` (all texts of one record) and `worker` (the same in a process that can be killed).
Importing this package loads neither spaCy nor its model.
"""
