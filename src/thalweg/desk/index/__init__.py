"""The search index over imported papers: plain arrays mapped into memory, rebuilt and never edited.

One pass over the papers counts their words; from the counts come the postings for search by word and the
vectors for search by meaning. A question scores every paper, so that filters apply before the best are
taken.
"""
