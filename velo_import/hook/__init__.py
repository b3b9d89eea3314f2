# SPDX-License-Identifier: Apache-2.0
"""The part of Velo that lives in other people's programs: it answers or stays silent, and never raises.

Imports nothing that Python has not already loaded, except the native module. No other room of Velo may be
imported here: the offsets of FORMAT.md that the hook needs are repeated in `manifest.py`, and a test proves
that they agree.
"""
