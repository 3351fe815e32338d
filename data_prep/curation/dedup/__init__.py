"""Copies and near copies of documents, found over all shards of a corpus in flat memory.

Exact copies: `exact.hash_shard` for every shard, then `exact.find_copies`. Near copies, among what
is left: `minhash.sign_shard` for every shard, `candidates.propose`, `candidates.gather_shard` for
every shard, `clusters.decide`. Both end in `decisions`, by which a shard is filtered. What is done
for a shard can be done anywhere and in any order; results depend on the documents and the order of
the shards only.
"""
