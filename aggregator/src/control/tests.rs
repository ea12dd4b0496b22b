//! The store on a temporary folder.
