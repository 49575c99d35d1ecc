"""HiREST: the part of a long video that answers an instruction."""
