import Foundation

/// What a picture's file says about how it was made, with the names that the Python runtimes use.
///
/// Port of mlx_moddit/metadata.py.
package struct PictureMetadata: Sendable, Hashable {
    /// Version of the format.
    static let version = 1
    /// Version of this package; the Python packages' too.
    package static let packageVersion = "0.1.0"
    /// Keyword of the text for programs.
    static let chunk = "moddit"
    /// Keyword of the text for people.
    static let chunkForPeople = "parameters"

    /// What was asked for.
    let request: Request
    /// What it was made from, if it is an edit.
    let edit: Edit?
    /// The guidance scale that was used.
    let guidanceScale: Double
    /// The picture's size.
    let size: PictureSize
    /// The sampler that was used.
    let sampler: Sampler
    /// The bundle's folder, as the user gave it.
    let path: String?
    /// Of the bundle's contents.
    let fingerprint: String
    /// Where the bundle came from.
    let source: String
    /// Computed in.
    let dtype: String?
    /// Programs whose version can change a picture.
    let versions: [String: String]

    /// The JSON of the text for programs.
    package var json: String {
        JSON.object([
            "version": .integer(Self.version),
            "settings": settings,
            "model": .object([
                "path": path.map { .string($0) } ?? .null,
                "fingerprint": .string(fingerprint),
                "source": .string(source),
            ]),
            "dtype": dtype.map { .string($0) } ?? .null,
            "versions": .dictionary(versions.mapValues { .string($0) }),
        ]).text
    }

    /// The request, complete; what is not asked for is left out, such as a label. An edit is told by digests.
    private var settings: JSON {
        var fields: [String: JSON] = [
            "prompt": .string(request.prompt),
            "negative_prompt": .string(request.negativePrompt),
            "seed": UInt64(exactly: request.seed).map { .unsigned($0) } ?? .integer(Int(clamping: request.seed)),
            "steps": .integer(request.steps),
            "guidance_scale": .number(guidanceScale),
            "height": .integer(size.height),
            "width": .integer(size.width),
            "sampler": .string(sampler.rawValue),
        ]
        fields["label"] = request.label.map { .integer($0) }
        fields["reuse"] = request.reuse == 1 ? nil : .integer(request.reuse)
        fields["image"] = edit.map { .string($0.image.digest) }
        fields["mask"] = edit?.mask.map { .string($0.digest) }
        fields["strength"] = edit.map { .number($0.strength) }
        return .dictionary(fields)
    }

    /// The lines that image browsers show.
    var parameters: String {
        var lines = [request.label.map { "class \($0)" } ?? request.prompt]
        if guidanceScale > 1, !request.negativePrompt.isEmpty {
            lines.append("Negative prompt: \(request.negativePrompt)")
        }
        let facts = [
            "Steps: \(request.steps)",
            "Sampler: \(sampler.rawValue)",
            "CFG scale: \(String(format: "%g", guidanceScale))",
            "Seed: \(request.seed)",
            "Size: \(size.width)x\(size.height)",
            edit.map { "Denoising strength: \(String(format: "%g", $0.strength))" },
            request.reuse == 1 ? nil : "Reuse: \(request.reuse)",
            "Model hash: \(fingerprint.prefix(10))",
            "Version: moddit \(versions["moddit"] ?? Self.packageVersion)",
        ]
        return (lines + [facts.compactMap(\.self).joined(separator: ", ")]).joined(separator: "\n")
    }

    /// The texts of a PNG.
    var texts: [PNG.Text] {
        [PNG.Text(keyword: Self.chunk, text: json), PNG.Text(keyword: Self.chunkForPeople, text: parameters)]
    }
}
