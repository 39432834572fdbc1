//! Both generations, as llama.cpp writes them for fixture-2m, and what is no such file.
