//! The project's own images: what the demo and the tests install.

use std::path::PathBuf;

use crate::{
    error::{Doing, Result},
    image::Image,
    lab::Lab,
    setup::rust,
};

/// References of the project's images, as a chart's values take them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// What stands before the name: `$PINHOLE_IMAGE_PREFIX`, or `pinhole`.
    pub prefix: String,
    /// Tag of both: `$PINHOLE_IMAGE_TAG`, or `lab`.
    pub tag: String,
    /// Sizes in bytes of the agent's and the operator's image, when they were built here.
    pub sizes: Option<(u64, u64)>,
}

impl Images {
    fn named() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            prefix: set("PINHOLE_IMAGE_PREFIX").unwrap_or_else(|| "pinhole".to_owned()),
            tag: set("PINHOLE_IMAGE_TAG").unwrap_or_else(|| "lab".to_owned()),
            sizes: None,
        }
    }

    /// Repository of the agent's image, without the tag.
    pub fn agent_repository(&self) -> String {
        format!("{}/agent", self.prefix)
    }

    /// Repository of the operator's image, without the tag.
    pub fn operator_repository(&self) -> String {
        format!("{}/operator", self.prefix)
    }

    /// Full reference of the agent's image.
    pub fn agent(&self) -> String {
        format!("{}:{}", self.agent_repository(), self.tag)
    }

    /// Full reference of the operator's image.
    pub fn operator(&self) -> String {
        format!("{}:{}", self.operator_repository(), self.tag)
    }

    /// Builds both images and loads them into the lab's own cluster; another cluster pulls them by name.
    ///
    /// # Errors
    /// When a build fails or an image cannot be loaded.
    pub async fn provide(lab: &Lab) -> Result<Self> {
        let mut images = Self::named();
        if !lab.is_own() {
            return Ok(images);
        }
        let binaries = rust::binaries().await?;
        lab.load(&Image::of_binary(&images.agent(), &binaries.agent)?).await?;
        lab.load(&Image::of_binary(&images.operator(), &binaries.operator)?).await?;
        images.sizes = Some((size(&binaries.agent)?, size(&binaries.operator)?));
        Ok(images)
    }
}

fn size(file: &PathBuf) -> Result<u64> {
    Ok(std::fs::metadata(file).doing(|| format!("reading {}", file.display()))?.len())
}
