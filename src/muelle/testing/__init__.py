"""Things for tests of ours and of plugin writers: a virtual clock, a puppet worker."""
