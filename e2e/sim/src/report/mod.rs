//! How results are shown.

mod svg;
mod table;

pub use self::{
    svg::svg,
    table::{Style, table, worst_profiles},
};
