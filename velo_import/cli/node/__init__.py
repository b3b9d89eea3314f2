# SPDX-License-Identifier: Apache-2.0
"""What commands say about Node programs: the indexes in a store, a file that Node loads, an ingest."""
