# SPDX-License-Identifier: Apache-2.0
"""The store: blobs, packs and the catalogue that finds them."""
