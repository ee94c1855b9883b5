"""The demo: two versions of a small digit reader, trained here, served by a real sidecar.

``train.py`` makes the models, ``export.py`` the artifacts and the cache, ``client.py`` sends,
``load.py`` keeps requests in flight and counts, ``screen.py`` draws, ``story.py`` tells it all.
"""
