import Foundation

extension Graphs {
    /// Name and version of the system that this runs on; nil for one that bundles have no minimum for.
    package static var currentSystem: (name: String, version: OperatingSystemVersion)? {
        let version = ProcessInfo.processInfo.operatingSystemVersion
        #if os(macOS) || targetEnvironment(macCatalyst)
        return ("macOS", version)
        #elseif os(iOS)
        return ("iOS", version)
        #else
        return nil
        #endif
    }

    /// Checks that a system is new enough for the packages.
    ///
    /// - Throws: `ModditError.unsupported` if it is older than `minimumOS`.
    package func check(system name: String, version: OperatingSystemVersion) throws(ModditError) {
        guard let minimum = minimumOS[name] else { return }
        let found = [version.majorVersion, version.minorVersion, version.patchVersion]
        let wanted = minimum.split(separator: ".").compactMap { Int($0) }
        guard !found.lexicographicallyPrecedes(wanted) else {
            throw .unsupported(
                "[manifest] the bundle needs \(name) \(minimum), this is "
                    + "\(name) \(found.map(String.init).joined(separator: ".")); update the system")
        }
    }
}
