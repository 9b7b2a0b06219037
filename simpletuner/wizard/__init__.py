"""From a folder of pictures to a configuration, by at most twelve questions. One graph serves every way of answering.

`graph` lists the questions, `topics/` holds what each asks, proposes and leads to; `session` the answers so far and
what they mean; `facts` what is seen on this machine; `documents` the files that come of it; `terminal` and `answers`
are two ways of answering. No torch, no network.
"""
