"""Rows that nobody said: generators of feature vectors and of patches, what they must beat, and how they are judged.

| module      | what                                                                                            |
|-------------|-------------------------------------------------------------------------------------------------|
| `networks`  | a class-conditional generator of rows, and its sampling                                          |
| `gan`       | training against a projection discriminator on rows that may be looked at: public, or one's own |
| `patches`   | the same for patches of a log-mel spectrogram                                                    |
| `gaussians` | a Gaussian for each class: plain, or read off noised sums                                        |
| `mixing`    | a row between two rows of a class; mode `none` only                                              |
| `quality`   | distance by class, copies, membership                                                            |
| `synthetic` | the file of rows that a study names by its SHA-256                                               |

The private form is `server/strategies/adversarial.py`: the generator stays at the coordinator and meets only
discriminators that sites trained under their ledgers.
"""
