"""Where tasks are worked on: in this process, or by workers that Ray places on one machine or many."""
