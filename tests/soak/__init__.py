"""Hundreds of clients, good and bad, on two nodes, while what they stand on breaks; and the judge of what came of it.

| file | what |
|---|---|
| `test_soak.py` | the test |
| `chapter.py` | some time under fire, then peace, then the judge |
| `soak_app.py`, `nodes.py` | the app, and its two processes, which are stopped, killed and frozen |
| `residents.py` | clients that behave well and note what they hear |
| `crowd.py`, `strangers.py` | clients that do not |
| `visits.py`, `inputs.py` | what these have at hand, and what they send |
| `faults.py` | what happens to Redis, to the network and to the nodes |
| `history.py`, `judge.py` | what was said and heard; what of it must not be |
| `rest.py` | what a node holds when nothing goes on |
"""
