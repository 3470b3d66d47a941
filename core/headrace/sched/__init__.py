"""The decision core: events in, commands out. Pure; ``machine`` says what lives where, ``policy`` why it decides so."""
