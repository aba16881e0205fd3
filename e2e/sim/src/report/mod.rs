//! How results are shown.

mod table;

pub use self::table::{Style, table};
