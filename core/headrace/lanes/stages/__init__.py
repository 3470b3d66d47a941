"""Stages in processes of their own: a stage that would fight with its producer for the GIL runs elsewhere.

``frames`` is what owner and stage process say to each other, ``process`` the owner's side, ``helper`` the main program
of a stage process. None of it knows jobs, slots or the decision core: to those the stage is a thread that waits.
"""
